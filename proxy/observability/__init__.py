"""What happened, counted: series for Prometheus, with bounded labels."""
