package apiserver

func (q *request) serveOpenAPI(path string) error { return errPath() }
