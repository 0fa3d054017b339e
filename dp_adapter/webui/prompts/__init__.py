"""The words of a job: what is sampled, where persons stand in it, and its encoding by the host."""
