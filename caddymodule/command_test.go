package caddymodule

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// TestCommandGracePeriod checks that the command's stop is bounded, at longer
// than response_timeout.
func TestCommandGracePeriod(t *testing.T) {
	cfg, err := commandConfig(":8080", &Handler{Region: "us01"}, false, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var app caddyhttp.App
	if err := json.Unmarshal(cfg.AppsRaw["http"], &app); err != nil {
		t.Fatal(err)
	}
	if app.GracePeriod != caddy.Duration(40*time.Second) {
		t.Errorf("grace_period is %v", time.Duration(app.GracePeriod))
	}
}
