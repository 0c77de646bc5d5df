"""How sizes are written."""


def megabytes(size: int) -> str:
    """Bytes as MB of 10**6, with one digit behind the point."""
    return f"{size / 1e6:,.1f} MB"
