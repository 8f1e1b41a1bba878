"""Who may reach what: certificates, tokens, and the secrets within a cluster. SECURITY.md says against whom."""


class SecurityError(ValueError):
    """Certificates, tokens or addresses that cannot be used. The message names the file and the remedy."""
