"""What a user types: click's commands, the prompt and the program's terminal. Parse, call, print."""
