"""What a clean process scores an exported model with; these files import nothing of rayft."""
