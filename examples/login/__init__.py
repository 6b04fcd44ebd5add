"""A person logs in from a page or a program, and is moved from the GUEST channel to the ADMIN channel.

Read :mod:`~examples.login.channels` first: it is the API. Around it are :mod:`~examples.login.users` (a database with
hashed passwords), :mod:`~examples.login.tokens` (signed, expiring), :mod:`~examples.login.server` (the command that
serves API and page on one port) and :mod:`~examples.login.client` (the same flow in Python). The page: ``static/``.
"""
