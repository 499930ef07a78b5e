"""The owner's rules: `read` knows what a rule says, `output` where its output goes, `dispatch` what it asks for now."""
