"""Statements for PostgreSQL's driver: names become its parameters, and nothing else does."""

from __future__ import annotations

import pytest

from tidemill.ledger.postgres_texts import numbered


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("select :a + :b_2", "select %(a)s + %(b_2)s"),
        ("select :a::bigint", "select %(a)s::bigint"),
        ("where name like '5 %' and id = :id", "where name like '5 %%' and id = %(id)s"),
    ],
)
def test_names_become_parameters(statement: str, text: str) -> None:
    assert numbered(statement) == text
