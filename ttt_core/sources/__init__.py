"""Sources of tasks: families of programs and libraries, drawn by seed and exported as files of tasks."""
