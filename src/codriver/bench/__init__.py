"""What the drive and the benches feed on: recorded links, a workload with known answers, and the grading of answers."""
