"""All traffic to engines: what HTTP libraries raise leaves here as an error of ours."""
