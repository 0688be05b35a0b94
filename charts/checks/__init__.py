"""What charts/check runs: each check is a function named as the promise that it keeps."""
