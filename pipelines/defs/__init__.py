"""Assets, checks, jobs, schedules and sensors; `pipelines.definitions` loads every module of this folder."""
