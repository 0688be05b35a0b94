// A small program for Pods of tests. Without a word it waits for its end, which
// is all that a Pod's sandbox has to do.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `usage: probe                  waits for a signal
       probe serve ADDRESS    answers every request with the Pod's name
       probe get URL          prints what URL answers, or fails within 3 seconds
       probe list FOLDER      prints the names in a folder`

func main() {
	switch {
	case len(os.Args) == 1:
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
		<-end
	case len(os.Args) == 3 && os.Args[1] == "serve":
		fail(http.ListenAndServe(os.Args[2], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			name, _ := os.Hostname()
			fmt.Fprint(w, name)
		})))
	case len(os.Args) == 3 && os.Args[1] == "get":
		client := http.Client{Timeout: 3 * time.Second}
		answer, err := client.Get(os.Args[2])
		fail(err)
		_, err = io.Copy(os.Stdout, answer.Body)
		fail(err)
	case len(os.Args) == 3 && os.Args[1] == "list":
		entries, err := os.ReadDir(os.Args[2])
		fail(err)
		for _, entry := range entries {
			fmt.Println(entry.Name())
		}
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
