"""What happened, for those who run the system: logs, metrics, spans. Never a request's or an answer's text."""
