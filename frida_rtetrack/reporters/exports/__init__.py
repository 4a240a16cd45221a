"""What other tools open: one file a format. Each writes one Moment; the sums of what it holds are the moment's."""
