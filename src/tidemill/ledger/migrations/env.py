"""How Alembic runs here: on a connection that is handed over, inside its transaction."""

from alembic import context

from tidemill.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,  # the caller's transaction covers all migrations together
)
context.run_migrations()
