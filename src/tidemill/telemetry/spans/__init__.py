"""Back ends of the span store: DuckDB with cold Parquet partitions, or ClickHouse; one query builder for both."""
