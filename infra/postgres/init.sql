-- Run once, on an empty volume. `dagster` is made by the image itself (POSTGRES_DB).
CREATE DATABASE mlflow;
CREATE DATABASE labelstudio;
