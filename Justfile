# The habits of this project. `./bootstrap RECIPE` installs what a recipe needs and then runs it.

set positional-arguments

tools := "go tool -modfile=tools/go.mod"

# list the recipes
default:
    @just --list

# sign real files through client, bridge and server and have others verify them: demo [--softhsm] [FILE...]
demo *args: build
    @scripts/demo "$@"

# build the three programs into bin/
build:
    CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/chancery ./cmd/chancery-bridge
    CGO_ENABLED=1 go build -trimpath -o bin/ ./cmd/chancery-server

# build .deb and .rpm packages of the three programs into dist/
package:
    @packaging/build dist

# run every test under the race detector
test *args:
    go test -race -timeout 30m "$@" ./...

# all but the tests: format, vet, staticcheck, vulnerabilities, other systems, module files, and ten seconds of each fuzz target
check: format-check vet portable vulnerabilities modules fuzz

[private]
format-check:
    @test -z "$(gofmt -l .)" || { echo "gofmt wants:"; gofmt -l .; exit 1; }

[private]
vet:
    go vet ./...
    {{tools}} staticcheck ./...
    go -C bench vet ./...
    go test -count=1 -run '^TestImports' ./internal/imports

# client and bridge must build without cgo wherever people run them
[private]
portable:
    @scripts/portable

[private]
vulnerabilities:
    @scripts/vulnerabilities

[private]
modules:
    go mod verify
    go mod tidy -diff
    go -C bench mod tidy -diff

# run every fuzz target for a while each: fuzz [DURATION]
fuzz duration="10s":
    @scripts/fuzz "{{duration}}"

# measure the three processes against the raw token and the bare tunnel, in one run: bench [-quick] [-only SECTIONS] [-out DIR]
bench *args:
    go -C bench build -o ../bin/bench .
    bin/bench "$@"

# rewrite all Go files as gofmt wants them
format:
    gofmt -w .

# remove what build, package and demo made
clean:
    rm -rf bin dist
