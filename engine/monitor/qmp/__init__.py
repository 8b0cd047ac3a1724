"""The QMP wire server: sessions, requests, events."""
