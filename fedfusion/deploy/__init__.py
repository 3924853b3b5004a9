"""fedfusion on devices: keys, certificates, processes that are started again, and what they are doing."""
