"""The benchmark: ``nox -s bench``. Servers on one core, a load generator on another, each a process of its own."""
