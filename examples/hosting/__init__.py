"""One API in every arrangement that an ASGI server can find it in: alone, around an application, mounted in one."""
