package clone

import (
	"html/template"
	"io"
)

var page = template.Must(template.New("drill").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Drill of {{.Lineage}}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #d0d7de;vertical-align:top}
th{width:12rem;font-weight:600}code{font-size:.85em;overflow-wrap:anywhere}
.ok{color:#1a7f37}.bad{color:#cf222e}
</style></head><body>
<h1>Drill: {{if .OK}}<span class="ok">passed</span>{{else}}<span class="bad">failed</span>{{end}}</h1>
<p>{{.Time.Format "2006-01-02 15:04:05 MST"}}, hsmbackup {{.Version}}</p>
<table>
<tr><th>Lineage</th><td><code>{{.Lineage}}</code></td></tr>
<tr><th>Source</th><td>{{.Source.Cluster}} in {{.Source.Region}}: {{.Source.HSMs}} HSMs, {{.Source.Keys}} keys<br>root <code>{{.Source.Root}}</code></td></tr>
<tr><th>Clone</th><td>{{.Clone.Cluster}} in {{.Clone.Region}}: {{.Clone.HSMs}} HSMs, {{.Clone.Keys}} keys<br>root <code>{{.Clone.Root}}</code></td></tr>
<tr><th>Snapshot</th><td>{{.Snapshot.ID}}: {{.Snapshot.Objects}} objects, {{.Snapshot.BytesStored}} bytes stored, {{printf "%.2f" .Snapshot.Seconds}} s</td></tr>
<tr><th>Restore</th><td>{{printf "%.2f" .Restore.Seconds}} s</td></tr>
<tr><th>synckey</th><td>{{.Synckey.Missing}} new, {{.Synckey.Changed}} changed, {{.Synckey.Destroyed}} destroyed; {{.Synckey.Applied}} applied in {{printf "%.2f" .Synckey.Seconds}} s</td></tr>
<tr><th>Proof</th><td>roots {{if .Proof.RootsEqual}}equal{{else}}<b class="bad">differ</b>{{end}}; {{.Proof.KCVChecked}} check values compared; {{.Proof.KeysUsed}} keys used</td></tr>
<tr><th>RPO</th><td>{{printf "%.2f" .RPOSeconds}} s, from the snapshot's moment to the loss</td></tr>
<tr><th>RTO</th><td>{{printf "%.2f" .RTOSeconds}} s, from the loss to the first answer of a key</td></tr>
</table>
{{if .Proof.Failures}}<h2 class="bad">Doubts</h2><ul>{{range .Proof.Failures}}<li>{{.}}</li>{{end}}</ul>{{end}}
{{with .Signature}}<h2>Signature</h2><p>Ed25519, by the lineage, over the JSON report without its signature.</p>
<p>public key <code>{{.Public}}</code><br>signature <code>{{.Signature}}</code></p>{{end}}
</body></html>
`))

// Page writes the report as a page to read.
func (r *Report) Page(w io.Writer) error { return page.Execute(w, r) }
