"""Personal data and credentials are taken out of text before anything queryable is written."""

from __future__ import annotations

from tidemill.checks import find_pii, find_secrets, mask


def mask_pii(text: str) -> str:
    """Replace personal data and credentials by placeholders such as ``<email>``, ``<phone>`` or ``<api_key>``.

    Equal kinds give equal placeholders. Masking a masked text changes nothing.
    """
    # Taking one finding out can lay bare its neighbour; each round removes characters, so there is a last one.
    while findings := (*find_secrets(text), *find_pii(text)):
        text = mask(text, findings)
    return text
