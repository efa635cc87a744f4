// Pins gopher-lua, by which Argo CD runs its health checks, for those of deploy/integrations/argocd.
module weft.dev/tests/lua

go 1.26.0

require github.com/yuin/gopher-lua v1.1.2
