"""One module a migration, each up and down."""
