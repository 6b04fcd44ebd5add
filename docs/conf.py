"""Sphinx's settings."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "brightsocket_anyio"
author = "The brightsocket_anyio founders"
project_copyright = f"2026, {author}"
version = release = installed_version("brightsocket-anyio")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "benchmark/*.md"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"

html_theme = "furo"
html_title = f"{project} {release}"
