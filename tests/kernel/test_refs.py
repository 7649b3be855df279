from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.kernel import ArtifactKind, ArtifactRef, InvalidInput, Scope, parse_ref

names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)
labels = names.filter(lambda text: not text.isdecimal() and not text.startswith("sha256"))


@given(st.sampled_from(ArtifactKind), names, st.none() | st.integers(1, 10**6), st.none() | labels)
def test_reads_back_what_it_writes(kind: ArtifactKind, name: str, version: int | None, label: str | None) -> None:
    ref = ArtifactRef(kind, name, version=version, label=None if version is not None else label)
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("helpdesk", "kind/name"),
        ("datasets/helpdesk", "no artifact kind 'datasets'"),
        ("dataset/Help Desk", "cannot name"),
        ("dataset/helpdesk@0", "count from 1"),
        ("dataset/helpdesk@sha256:12", "not a digest"),
        ("dataset/helpdesk@", "cannot name"),
    ],
)
def test_says_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        parse_ref(text)


def test_scope_names_are_checked() -> None:
    with pytest.raises(InvalidInput, match="project"):
        Scope("../etc")
