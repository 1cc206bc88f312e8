package codertest

// roles are those of the token's user. One of an organization is none of all.
func (t Token) roles() []object {
	if t.Role != TemplateAdmin || t.Owner != "" {
		return []object{{"name": "template-admin", "organization_id": ownerID("coder")}}
	}
	return []object{{"name": "template-admin", "display_name": "Template Admin"}}
}
