"""What happened: MLflow runs, registry, lineage. The only room that imports mlflow."""
