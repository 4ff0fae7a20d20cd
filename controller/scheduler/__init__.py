"""Serves queries of many threads and coroutines by one model: queues, priorities, deadlines and shared batches."""
