"""Who may reach what: certificates, tokens, and the secrets within a cluster. SECURITY.md says against whom."""

from workers.security import SecurityError

__all__ = ["SecurityError"]
