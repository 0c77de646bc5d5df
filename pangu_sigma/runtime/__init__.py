"""What a process of this program shares with others on its machine: files and locks."""
