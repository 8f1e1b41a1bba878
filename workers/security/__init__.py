"""What both ends of a port within a deployment need: secrets, certificates, and files that change."""


class SecurityError(ValueError):
    """Certificates, secrets, tokens or addresses that cannot be used. The message names the file and the remedy."""
