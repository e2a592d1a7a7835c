"""The order of a step's operations (section 3.3, eq. 11): graph, simulator, pipelines, gradient buckets."""
