"""Work of one program spread over several devices."""
