"""``quantcard doctor``: what is wrong with an installation, and how it is put right.

Facts are gathered by thin probes (probes.py, llama.py's subprocess, bot/store/health.py, bot/hub/account.py) and judged
by pure functions (``judge`` in each module), which give :class:`~bot.doctor.finding.Finding`.
"""
