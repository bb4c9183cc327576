"""What a token's URL answers, and the dashboard."""
