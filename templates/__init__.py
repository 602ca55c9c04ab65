"""Jinja templates of everything that quantcard writes where others read it."""
