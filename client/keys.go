package client

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"chancery/tunnel/wire"
)

// KeyInfo describes a key of the server.
type KeyInfo struct {
	Name         string
	Algorithm    wire.KeyAlgorithm
	Handle       string           // upper-case hex SHA-256 of the DER SubjectPublicKeyInfo
	Public       crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey, or nil for an algorithm unknown to this program
	PublicPEM    string           // the SubjectPublicKeyInfo
	Certificates []wire.Certificate
	Hardware     *bool // whether the private half is in hardware; nil when the server does not tell
}

// WhoAmI returns the user's name as the server knows it.
func (c *Client) WhoAmI(ctx context.Context) (string, error) {
	body, err := c.read(ctx, &wire.WhoAmI{})
	if err != nil {
		return "", told("who_am_i", "", err)
	}
	return body.(*wire.WhoAmIReply).User, nil
}

// Keys returns the keys that the user may use, in the server's order. A key
// whose public half does not fit its handle, or a pinned handle, fails the call.
func (c *Client) Keys(ctx context.Context) ([]KeyInfo, error) {
	body, err := c.read(ctx, &wire.ListKeys{})
	if err != nil {
		return nil, told("list_keys", "", err)
	}
	keys := body.(*wire.ListKeysReply).Keys
	infos := make([]KeyInfo, 0, len(keys))
	for _, key := range keys {
		info, err := c.checked(key)
		if err != nil {
			return nil, told("list_keys", key.Name, err)
		}
		infos = append(infos, *info)
	}
	return infos, nil
}

// GetKey asks the server for one key. A public half that does not fit its
// handle, or a pinned handle, is refused with CodeBadReply or ErrHandleMismatch.
func (c *Client) GetKey(ctx context.Context, name string) (*KeyInfo, error) {
	body, err := c.read(ctx, &wire.GetKey{Key: name})
	if err != nil {
		return nil, told("get_key", name, err)
	}
	info, err := c.checked(body.(*wire.GetKeyReply).Key)
	if err != nil {
		return nil, told("get_key", name, err)
	}
	return info, nil
}

// known returns what GetKey returned the first time, so that a server cannot
// change a key under a client that has begun to use it.
func (c *Client) known(ctx context.Context, name string) (*KeyInfo, error) {
	c.mu.Lock()
	info := c.keys[name]
	c.mu.Unlock()
	if info != nil {
		return info, nil
	}
	asked, err := c.GetKey(ctx, name)
	if err != nil {
		return nil, err
	}
	if asked.Public == nil {
		return nil, told("get_key", name, failure(wire.CodeAlgorithmMismatch, "this program does not know keys of kind %q; a newer version may", asked.Algorithm))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if earlier := c.keys[name]; earlier != nil {
		return earlier, nil
	}
	c.keys[name] = asked
	return asked, nil
}

// checked believes a key's description only as far as its parts agree.
func (c *Client) checked(key wire.Key) (*KeyInfo, error) {
	info := &KeyInfo{
		Name: key.Name, Algorithm: key.Algorithm,
		Certificates: key.Certificates, Hardware: key.Hardware,
	}
	block, _ := pem.Decode([]byte(key.PublicKey))
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, failure(CodeBadReply, "the server sent no public key")
	}
	info.Handle = wire.Handle(block.Bytes)
	// Encoded anew: what else the server's text holds, another program might take for the key.
	info.PublicPEM = string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	if !strings.EqualFold(info.Handle, key.Handle) {
		return nil, failure(CodeBadReply, "the public key that the server sent is not the one that its handle names")
	}
	if pin := c.cfg.Pin(key.Name); pin != "" && !strings.EqualFold(pin, info.Handle) {
		mismatch := *ErrHandleMismatch
		mismatch.Hint = "the server's key has the handle " + info.Handle + "; if it was replaced on purpose, change the pin"
		return nil, &mismatch
	}
	if key.Algorithm.Tag() == "" {
		return info, nil
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, failure(CodeBadReply, "the server sent a public key that cannot be read")
	}
	if algorithm, err := wire.KeyAlgorithmOf(public); err != nil || algorithm != key.Algorithm {
		return nil, failure(CodeBadReply, "the server calls the key %q, which it is not", key.Algorithm)
	}
	info.Public = public
	return info, nil
}
