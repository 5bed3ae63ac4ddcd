"""All talk with Redis is in here."""
