"""Two ways to run a turn of Codex behind one interface; nothing here knows Django or HTTP."""
