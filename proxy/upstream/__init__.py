"""All traffic to engines: what goes wrong on a connection leaves here as an error of ours."""
