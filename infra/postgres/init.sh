#!/bin/sh
# A user and a database for each service; no user can reach another's. The image runs this once, on an empty volume.
# Run again it changes passwords only. Passwords come from the environment and go to psql as variables of its own.
set -eu
for name in dagster mlflow labelstudio; do
  case $name in
    dagster) password=$DAGSTER_PG_PASSWORD ;;
    mlflow) password=$MLFLOW_PG_PASSWORD ;;
    labelstudio) password=$LABELSTUDIO_PG_PASSWORD ;;
  esac
  [ -n "$password" ] || { echo "the password of $name is empty" >&2; exit 1; }
  NAME=$name PASSWORD=$password psql -v ON_ERROR_STOP=1 -qtA --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv name NAME
\getenv password PASSWORD
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" WITH LOGIN PASSWORD :'password' NOSUPERUSER NOCREATEDB NOCREATEROLE;
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
ALTER DATABASE :"name" OWNER TO :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
GRANT ALL ON DATABASE :"name" TO :"name";
SQL
done
psql -v ON_ERROR_STOP=1 -q --username "$POSTGRES_USER" --dbname postgres -c 'REVOKE ALL ON DATABASE postgres FROM PUBLIC'
