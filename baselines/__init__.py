"""Rivals of planning on the same data, cameras, actions, goals and scoring; each plugs in as an `Agent`."""
