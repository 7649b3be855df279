"""Guarding what goes in and out: masking of personal data, API keys."""

from tidemill.safety.keys import fresh_api_key, issue_key, rotate_key, routing_keys
from tidemill.safety.masking import mask_pii

__all__ = ["fresh_api_key", "issue_key", "mask_pii", "rotate_key", "routing_keys"]
