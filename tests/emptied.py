"""Making a database as it was after its migrations: `empty` takes away its rows, `schema_of` says if that is all."""

import psycopg

# Everything in a database but rows: columns, constraints, indexes, triggers, functions, schemas and settings.
_SCHEMA = """
SELECT md5(string_agg(part, E'\\n' ORDER BY part COLLATE "C")) FROM (
    SELECT concat_ws(' ', relname, relkind, reloptions, attname, atttypid, atttypmod, attnotnull, attidentity,
                     pg_get_expr(adbin, adrelid)) AS part
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    LEFT JOIN pg_attrdef ON adrelid = pg_class.oid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    UNION ALL SELECT concat_ws(' ', conname, conrelid::regclass, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class ON oid = indexrelid
    WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', tgenabled, pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT concat_ws(' ', proname, prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT nspname FROM pg_namespace WHERE NOT starts_with(nspname, 'pg_')
    UNION ALL SELECT concat_ws(' ', rolname, setconfig) FROM pg_db_role_setting
    JOIN pg_database ON pg_database.oid = setdatabase LEFT JOIN pg_roles ON pg_roles.oid = setrole
    WHERE datname = current_database()
) AS parts (part)
"""
_DISCONNECT = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# As a replica, the server leaves out foreign keys and triggers: the audit's refuses deletions.
_EMPTY = """
DO $$
DECLARE
    relation pg_class;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR relation IN SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') LOOP
        CASE
            WHEN starts_with(relation.relname, 'embeddings_') THEN
                EXECUTE format('DROP TABLE IF EXISTS %I', relation.relname);
            WHEN relation.relkind = 'S' THEN
                PERFORM setval(relation.oid::regclass, 1, false);
            WHEN relation.relname <> 'alembic_version' THEN
                EXECUTE format('DELETE FROM %I', relation.relname);
            ELSE
        END CASE;
    END LOOP;
END $$
"""


def empty(connection: psycopg.Connection) -> None:
    """End all other connections of a database, and take its rows, its tables of generations and its counts away."""
    connection.execute(_DISCONNECT)
    connection.execute(_EMPTY)


def schema_of(connection: psycopg.Connection) -> str:
    """Return a digest of everything in a database but its rows."""
    row = connection.execute(_SCHEMA).fetchone()
    assert row is not None
    return str(row[0])
