"""Where jobs run; each runner takes a spec and gives a result or an error."""
