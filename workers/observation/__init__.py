"""What a process tells those who run it: log lines, metrics and spans; no prompts, no tokens."""
