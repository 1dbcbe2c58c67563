"""What a person sees: Rich lines, tables and progress; JSON and CSV for programs."""
