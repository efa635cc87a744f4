# What the control plane may do in OpenBao: have workloads signed, read credentials, look after its own token. (The issuers of a PKI
# engine everybody may read.) A test holds it to what the control plane asks. Leave out the credentials' part where --credentials openbao is not used.
path "pki/sign/weft" {
  capabilities = ["create", "update"]
}

path "secret/data/weft/*" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
